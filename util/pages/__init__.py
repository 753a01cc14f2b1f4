"""Output for people to look at: pages of images, plots, colours of label maps."""
