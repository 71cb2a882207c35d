"""A small shop, as an example to read and to run: `python -m message_bus.demo`.

    orders.csv ──► place_order ──► OrderPlaced ──► reserve_stock ──► StockReserved ──► write_invoice
                   (order and message:             (effects and checkpoint: one transaction each)
                    one transaction)

Read it in this order: `messages.py`, `models.py`, `handlers.py`, `shop.py` (all wiring is there), `__main__.py` (the run);
`orders.py` reads the CSV, `ledger.py` proves at the end that nothing was lost or done twice, `database.py` opens the
database.
"""
