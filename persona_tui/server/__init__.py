"""A front end for other programs: HTTP in the forms of OpenAI's and Ollama's APIs, and one of our own."""
