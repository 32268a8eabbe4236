"""OpenAI's Responses API, made of a chat."""
