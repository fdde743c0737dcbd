//! VmFlags of /proc/PID/smaps, from `show_smap_vma_flags` in fs/proc/task_mmu.c.
