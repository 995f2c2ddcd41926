"""What every Python adapter shares: the board, the handlers and the command line.

Runs inside the peers' virtual environments, so it imports the standard library only (and uvloop where
present).
"""
