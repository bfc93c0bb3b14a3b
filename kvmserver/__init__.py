"""kvmserver serves every HTTP request from a fork of a warmed-up Linux program that is reset afterwards.

Python decides (command line, configuration, supervision, warm-up), the Rust extension ``_vmm`` runs. No Python runs
per served request.
"""
