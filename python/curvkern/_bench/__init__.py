"""The benchmark runner behind ``python -m curvkern bench`` and ``bench/run.py``.

``case`` says what a benchmark is, ``runner`` times it, ``machine`` measures what the hardware
can do, ``report`` prints the table, ``main`` runs it all and writes the JSON. The cases
themselves live in the repository's ``bench/cases/<family>.py``; the wheel carries a copy.
"""
