"""The LLM loop: an agent of ours, a program of its own (``python -P -m daemon.llm``).

No worker and no attempt imports it: it needs site-packages, and pydantic-ai takes seconds to load.
"""
