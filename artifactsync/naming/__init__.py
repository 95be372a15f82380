"""What things are called: run names, path templates, and the only builder of object keys (``layout``)."""
