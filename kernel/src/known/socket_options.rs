//! Socket options, by level, from the uapi headers socket.h, tcp.h, in.h, in6.h and udp.h.
