"""Keeps a counter: every call adds one, and its answer is the number."""

import itertools

import kvmserverguest

numbers = itertools.count(1)
kvmserverguest.serve(lambda _request: str(next(numbers)))
