"""Toy street scenes, drawn by program: photographs with exact label and instance maps.

The background's colours follow from the label map and the row. The colours of a thing (person,
rider, car, bus, bicycle) do not: each has one of its class's palette, which the label map does not
show. That is what instance features are for.

Everything is drawn SUPERSAMPLE times too large. A pixel of the photograph is the mean of its
samples, a pixel of the maps is the sample at its centre: the maps are exact and agree with the
photograph and with each other.
"""
