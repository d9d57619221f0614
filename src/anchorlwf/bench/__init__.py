"""What things cost in time and memory, next to others, measured on this machine.

`anchorlwf.bench.suite.bench` runs any of them. Nothing is imported here, so that a competitor's process loads its own
part alone.
"""
