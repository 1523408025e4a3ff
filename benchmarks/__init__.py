"""`make bench`: this project beside what a user would pick instead, and beside the least that the work can cost.

docs/performance.md says what is measured and how to read it. `__main__` is the order of events; `rig` the servers and
the provider; `contenders` what is measured; `load` who posts orders; `report` the table, the file and the pictures.
"""
