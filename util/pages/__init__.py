"""What a person looks at: pages of images, colours of label maps."""
