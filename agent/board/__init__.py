"""What the machine is: each module takes a file system root, so tests use a fake one."""
