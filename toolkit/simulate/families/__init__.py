"""One file a family: how its files become the house's form, and how its blocks compute."""
