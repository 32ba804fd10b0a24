"""From raw TOF MRA scans to the training folder, with ANTs."""
