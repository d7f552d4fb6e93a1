"""What every control loop is made of: caches, work queue, reconciler, manager."""
