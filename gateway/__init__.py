"""One OpenAI endpoint for the fleet; a plain API client that watches Replicas and routes."""
