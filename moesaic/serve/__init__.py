"""A model over HTTP, in the forms of the OpenAI API."""
