"""Control loops: observe, plan, act."""
