"""The one package that touches Nameko's insides, and the broker's and database's connections.

Nameko stands at the edge so that it could be replaced: each module here exists because the stock behaviour loses
messages, hangs or dies (see docs/decisions). Nothing outside knows that.
"""
