"""A recipe -> its components, its weights, and the run that is made of them."""
