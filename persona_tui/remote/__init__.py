"""A chat with a model that another machine serves: what stands where a model loaded here would stand."""
