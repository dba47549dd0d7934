"""From a variant to a local image: source, base images, plan, build, clean-up."""
