"""Scheduling: the queue of a study's runs, its storage, and the workers that compute them."""
