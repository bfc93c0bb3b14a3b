"""``python -m kvmserver`` is the ``kvmserver`` script."""

from kvmserver.cli import main

main()
