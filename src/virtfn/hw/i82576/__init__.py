"""Facts of the Intel 82576: registers of PF and VF, mailbox words, descriptors, NVM and PHY."""
