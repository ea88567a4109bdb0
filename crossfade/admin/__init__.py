"""The admin API: what the control process answers on the admin port."""
