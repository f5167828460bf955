//! One block request: parsed from a descriptor chain that may be nonsense, carried out, answered with a status byte.
//!
//! Virtio 1.2, section 5.2.6. Sectors are 512 bytes whatever the logical block is.

use std::io::{self, Read, Write};

use tracing::debug;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ByteValued, Le32, Le64};

use super::disk::DiskFile;
use crate::memory::GuestRam;

const SECTOR: u64 = 512;
/// The most read or written in one piece, in bytes: bounds what a request makes the monitor allocate.
const PIECE: usize = 256 * 1024;
/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`.
const FLAG_UNMAP: u32 = 1;
/// A request that moves more than this is refused: no driver sends one, and it would keep a pause waiting.
const LARGEST: usize = 64 << 20;
/// How many segments one discard or write-zeroes may have; told in the configuration.
pub const MOST_SEGMENTS: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    kind: Le32,
    reserved: Le32,
    sector: Le64,
}
// SAFETY: plain integers without padding; every bit pattern is valid.
unsafe impl ByteValued for Header {}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    sector: Le64,
    sectors: Le32,
    flags: Le32,
}
// SAFETY: plain integers without padding; every bit pattern is valid.
unsafe impl ByteValued for Segment {}

/// Carries a request out; returns the number of bytes written into the guest's buffers. A chain without room for a
/// status byte cannot be answered and gives 0.
pub fn serve(disk: &DiskFile, chain: DescriptorChain<&GuestRam>, memory: &GuestRam) -> u32 {
    let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory)) else {
        debug!(disk = disk.id(), "a request outside the guest's memory");
        return 0;
    };
    // The status is the last writable byte.
    let Some(room) = writer.available_bytes().checked_sub(1) else { return 0 };
    let Ok(mut status_writer) = writer.split_at(room) else { return 0 };
    let status = match execute(disk, &mut reader, &mut writer) {
        Ok(()) => VIRTIO_BLK_S_OK,
        Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        Err(Failure::Io(error)) => {
            debug!(disk = disk.id(), %error, "a block request failed");
            VIRTIO_BLK_S_IOERR
        }
    };
    let written = writer.bytes_written() + 1;
    if status_writer.write_all(&[u8::try_from(status).unwrap_or(1)]).is_err() {
        return 0;
    }
    u32::try_from(written).unwrap_or(u32::MAX)
}

enum Failure {
    Unsupported,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn execute<B: BitmapSlice>(
    disk: &DiskFile,
    reader: &mut Reader<'_, B>,
    writer: &mut Writer<'_, B>,
) -> Result<(), Failure> {
    if reader.available_bytes().max(writer.available_bytes()) > LARGEST {
        return Err(Failure::Io(io::ErrorKind::InvalidInput.into()));
    }
    let header: Header = reader.read_obj()?;
    let offset = |sector: Le64| u64::from(sector).checked_mul(SECTOR).ok_or(io::ErrorKind::InvalidInput);
    match u32::from(header.kind) {
        VIRTIO_BLK_T_IN => read(disk, offset(header.sector).map_err(io::Error::from)?, writer)?,
        VIRTIO_BLK_T_OUT => write(disk, offset(header.sector).map_err(io::Error::from)?, reader)?,
        VIRTIO_BLK_T_FLUSH => disk.sync()?,
        VIRTIO_BLK_T_GET_ID => id(disk, writer)?,
        VIRTIO_BLK_T_DISCARD => segments(reader, |at, length, _| disk.discard(at, length))?,
        VIRTIO_BLK_T_WRITE_ZEROES => {
            segments(reader, |at, length, flags| disk.write_zeroes(at, length, flags & FLAG_UNMAP != 0))?
        }
        _ => return Err(Failure::Unsupported),
    }
    Ok(())
}

fn read<B: BitmapSlice>(disk: &DiskFile, mut offset: u64, writer: &mut Writer<'_, B>) -> io::Result<()> {
    let mut buffer = vec![0; writer.available_bytes().min(PIECE)];
    while writer.available_bytes() > 0 {
        let count = writer.available_bytes().min(PIECE);
        let piece = &mut buffer[..count];
        disk.read(offset, piece)?;
        writer.write_all(piece)?;
        offset += count as u64;
    }
    Ok(())
}

fn write<B: BitmapSlice>(disk: &DiskFile, mut offset: u64, reader: &mut Reader<'_, B>) -> io::Result<()> {
    let mut buffer = vec![0; reader.available_bytes().min(PIECE)];
    while reader.available_bytes() > 0 {
        let count = reader.available_bytes().min(PIECE);
        let piece = &mut buffer[..count];
        reader.read_exact(piece)?;
        disk.write(offset, piece)?;
        offset += count as u64;
    }
    Ok(())
}

fn id<B: BitmapSlice>(disk: &DiskFile, writer: &mut Writer<'_, B>) -> io::Result<()> {
    let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
    let id = disk.id().as_bytes();
    serial[..id.len()].copy_from_slice(id);
    let room = writer.available_bytes().min(serial.len());
    writer.write_all(&serial[..room])
}

fn segments<B: BitmapSlice>(
    reader: &mut Reader<'_, B>,
    mut act: impl FnMut(u64, u64, u32) -> io::Result<()>,
) -> io::Result<()> {
    for _ in 0..MOST_SEGMENTS {
        if reader.available_bytes() == 0 {
            return Ok(());
        }
        let segment: Segment = reader.read_obj()?;
        let offset = u64::from(segment.sector).checked_mul(SECTOR).ok_or(io::ErrorKind::InvalidInput)?;
        act(offset, u64::from(u32::from(segment.sectors)) * SECTOR, segment.flags.into())?;
    }
    if reader.available_bytes() == 0 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}
