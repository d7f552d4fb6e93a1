"""`python -m toolkit`, which `rkfleet toolkit` becomes."""

from toolkit.commands.app import main

main()
