"""Management of virtual functions: finding them, giving them to guests, taking them back."""
