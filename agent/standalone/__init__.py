"""A board without a fleet: `rkfleet agent run --standalone --model FILE`."""
