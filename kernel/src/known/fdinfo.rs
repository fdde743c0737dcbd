//! Keys of /proc/PID/fdinfo/FD, by kind of file.
