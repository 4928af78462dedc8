"""Did this very image take part in what a client trained on?"""
