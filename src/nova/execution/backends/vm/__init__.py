"""What the backends that run virtual machines share: drives made of folders, leases of numbers, interfaces and rules."""
