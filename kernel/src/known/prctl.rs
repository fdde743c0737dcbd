//! prctl(2) options, from include/uapi/linux/prctl.h.
