"""Rules for image files as the world has them: formats, damage, orientation, colours. Import `matting.data.images`."""
