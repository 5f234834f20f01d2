"""The operator's side: what runs where a person types, and looks at the hosts of an inventory."""
