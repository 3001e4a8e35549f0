"""Virtual machines by QEMU, with KVM or without."""
