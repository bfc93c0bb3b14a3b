"""A counter in an SQLite file: every call adds one, and its answer is the number: storage_sqlite.py FILE JOURNAL_MODE.

The word ``crash`` ends the program when the number is in the file.
"""

import os
import signal
import sqlite3
import sys

import kvmserverguest

database = sqlite3.connect(sys.argv[1], isolation_level=None)
(mode,) = database.execute(f"PRAGMA journal_mode={sys.argv[2]}").fetchone()
if mode != sys.argv[2]:
    sys.exit(f"the journal is {mode}")
database.execute("CREATE TABLE IF NOT EXISTS counter (number INTEGER NOT NULL)")
database.execute("INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT * FROM counter)")


def answer(request: bytes) -> str:
    database.execute("BEGIN IMMEDIATE")
    (number,) = database.execute("UPDATE counter SET number = number + 1 RETURNING number").fetchone()
    database.execute("COMMIT")
    if request == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return str(number)


kvmserverguest.serve(answer)
