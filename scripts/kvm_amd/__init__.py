"""A machine with the real kvm_amd module, in software: QEMU's TCG emulates a CPU with SVM and nested paging.

From a command to its exit status, in this order:

* ``command.py``: the command line.
* ``image.py``: the root file system from Debian's packages, made once; ``hook.sh`` puts kernel modules into it.
* ``project.py``: the second disk, mounted at /usr/local: the installed project, its tests, their compiled guests.
* ``cache.py``: both are kept by a hash of what goes into them.
* ``machine.py``: QEMU, started until a machine answers (a few starts hang), and the conversation with it.
* ``agent.py``: the other end, process 1 of the machine. Of ours it imports ``frames.py`` and ``share.py`` only.
* ``frames.py``: what the two say to each other. ``share.py``: a directory as a stream, and back.
"""
