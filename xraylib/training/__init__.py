"""Recipes, networks and the runs they leave."""
