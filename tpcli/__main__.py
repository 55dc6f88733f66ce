"""`python -m tpcli`, which launchers such as torchrun and accelerate start."""

from tpcli.cli.main import main

main()
