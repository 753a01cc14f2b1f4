"""How good generated images are: measures, segmentation networks, the report."""
