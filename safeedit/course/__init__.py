"""What teachers need: hours, plans and the map of ideas, slides, handouts, capstone.

`chapters` reads the sources of the course; all else here is made from what it finds.
"""
