"""Commands on stores and runs that exist, and their last step: manifest and report."""
