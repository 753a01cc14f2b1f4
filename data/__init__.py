"""From files to tensors: pairing, reading, transforms, toy scenes."""
