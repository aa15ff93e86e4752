"""From rows of people's formats to token ids."""
