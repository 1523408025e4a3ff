"""Releases: what one shares with the next, whether two may run side by side, and whether a new one is good.

tree.py, calls.py, tables.py   read from the code what it shares with other versions
releases.py                    keeps that as docs/releases/VERSION.json
rules.py, comparisons.py       the table of what one release may change, and how each row is checked
semver.py                      the least version number for a change
compatibility.py, making.py    docs/compatibility.md; what `make release` does
triggers.py, judge.py          when a new version is rolled back, and the verdict
prometheus.py                  the figures for the verdict
"""
