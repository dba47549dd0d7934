"""From a commit to published images: tag, push, evidence, promotion, record and notes."""
