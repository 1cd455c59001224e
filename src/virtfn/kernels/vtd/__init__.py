"""The data plane of the remapping unit: translation for DMA and for interrupts, ATS."""
