"""Rolecall: one small daemon per role keeps AI agents working through a sprint queue."""
